"""Administration of adapters: publishing, residency, sample texts, their encoder. No HTTP."""
