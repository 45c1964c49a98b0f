"""Images in the cloud: scenes, windows, masks, radiometry and label maps. Knows neither tiles nor models nor Ray."""
