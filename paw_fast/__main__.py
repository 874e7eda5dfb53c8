"""`python -m paw_fast`: the program, for launchers that start a module, such as torchrun."""

from paw_fast.cli.main import main

if __name__ == "__main__":
    main()
