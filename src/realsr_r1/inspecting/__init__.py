"""The checks of `realsr-r1 doctor`: of the machine, and of folders that commands read."""
