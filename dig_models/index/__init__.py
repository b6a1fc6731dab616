"""The SID index: generations on disk, written whole, verified, switched by one atomic replace, read as one state."""
