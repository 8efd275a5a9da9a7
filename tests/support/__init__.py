"""What tests share: worlds, doubles, builders of facts. The only place for it."""
