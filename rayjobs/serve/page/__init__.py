"""The pages at `/` and `/label`: search by place and by marks, and labels of tiles. No build step, nothing from the network."""
