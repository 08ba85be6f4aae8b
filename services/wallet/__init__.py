"""The wallet: owns balances of tokens, and can neither lose nor double-spend one."""
