"""What otf costs, each figure beside its rival in the same run."""
