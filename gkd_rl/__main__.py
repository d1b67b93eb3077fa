"""``python -m gkd_rl``: what launchers (torchrun, deepspeed, accelerate) start."""

from gkd_rl.cli import main

if __name__ == "__main__":
    main()
