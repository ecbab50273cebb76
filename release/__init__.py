"""What a release says of itself, held by tests; ``make records`` writes it anew."""
