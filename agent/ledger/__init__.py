"""What happened, durably: the journal, the results table, git. The only room that runs git."""
