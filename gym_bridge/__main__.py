"""`python -m gym_bridge` is `gym-bridge`."""

from gym_bridge.cli.main import main

if __name__ == "__main__":
    main()
