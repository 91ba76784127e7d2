"""The launcher: a small process of the standard library alone, which starts every program of the sandbox.

    zygote       waits for orders and forks a supervisor for each          (uid of the caller, no secrets, no tests)
    supervisor   watches one run: clock, memory, output, end                (outside the run's pid namespace)
    candidate    first process of the run: namespaces, files, privileges;   (pid 1 of the run)
                 its child puts on the last layers and becomes the program

It is apart from the caller because a large, threaded process must not fork, and because a program that got out of everything
else would then still not stand in the process that knows the expected values.
"""
