"""The verb that fetches imagery from tile services into the workspace, as Cloud Optimised GeoTIFFs, on Ray."""
