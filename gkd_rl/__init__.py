"""gkd-rl: align and compress a language model in one run."""

import os

# Threads that wait by spinning starve whatever shares the machine: with one other busy process on 2 cores, training steps of small
# models took ten times as long. The setting is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
