"""Any source -> ir.Model, with parity against the source. torch is imported here and nowhere else."""
