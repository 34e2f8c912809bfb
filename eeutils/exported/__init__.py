"""Files that go into an exported folder as they are."""
