"""`python -m realsr_r1 <command>`, the same as `realsr-r1 <command>`."""

from realsr_r1.cli import main

if __name__ == "__main__":
    main()
