&[("refilled-entry", include_str!("refilled-entry.txt"))]
