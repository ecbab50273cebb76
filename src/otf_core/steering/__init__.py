"""What a person may change while a run trains: how it is named, checked, set, and made to last."""
