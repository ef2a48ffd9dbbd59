"""Is compiled code right?"""
