"""`ir.Model` → `ir.Model`: one file a pass. Never imports torch or onnxruntime."""
