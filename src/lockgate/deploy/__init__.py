"""The update agent: pull by digest, verify, replace one service at a time, watch, go back by itself."""
