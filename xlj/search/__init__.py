"""The best labels for dense vectors, on the processors of one host.

`exact.topk`: all label rows, in float32, bfloat16 or int8
`index.build`: lists of similar label rows, few of which are looked at
`external`: label rows as files of FAISS and USearch
"""
