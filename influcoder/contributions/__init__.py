"""Who contributed what: signed values of rows and contributors, rewards, and their verification.

Values are exact integers (billionths of a score) from the stored scores on, so that anybody can recompute them to the last digit.
Needs the extra `contributions` (signatures, near-duplicates, kinds of data), onnxruntime, and no torch.
"""
