"""op_db parity: every operator of PyTorch, through warm-up, capture and replay, against eager bit for bit."""
