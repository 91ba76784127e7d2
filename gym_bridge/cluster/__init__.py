"""Many machines: Ray places processes, keeps them and replaces those that die. They talk to each other over wires of their own."""
