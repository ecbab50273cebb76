"""The Lightning plugin."""
