"""The verb that reads tiles from cloud-stored rasters into the workspace, on Ray Data."""
