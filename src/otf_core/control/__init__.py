"""What a command meets on its way: bus, router, gate, actions, delegate, safe point."""
