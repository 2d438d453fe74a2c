"""One test per promise of the design: contracts C1 to C12, and each line of "What equals what, exactly"."""
