"""The verb that writes the chips of a set as other programs read them: image folders, Parquet, TFRecords; on Ray Data."""
