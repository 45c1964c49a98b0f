"""What people say of tiles: taxonomies, events that are only ever added, who looks at which tile now, and what follows from it."""
