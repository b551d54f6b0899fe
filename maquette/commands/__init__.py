"""What each command of `maquette` does with its options; one module a command, imported only when it is asked for."""
