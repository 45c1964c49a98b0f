"""The verb that makes taxonomies, and takes labels in and out of a workspace; it needs no Ray."""
