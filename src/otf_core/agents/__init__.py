"""Runs for agents: the verbs as tools, under guard."""
