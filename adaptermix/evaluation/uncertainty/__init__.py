"""`adaptermix bench uncertainty`: what an ensemble of copies is worth against its average."""
