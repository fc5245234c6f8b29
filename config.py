"""Settings that every front end reads, under the name that scripts written for the original import."""

# True: spend time to save GPU memory. Attention in slices, and networks move to the GPU only while they work.
save_memory: bool = False
