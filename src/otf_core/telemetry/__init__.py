"""What a run says of itself: emitter, journal, the table of metrics and what measures them."""
