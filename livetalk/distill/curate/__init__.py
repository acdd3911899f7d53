"""Curation: from a folder of talking-head videos to the shards a generator is trained on.

Every file is read twice in constant memory: once to find shots and faces (``scan``), once to cut out and judge the
clips that are left (``candidates`` with ``judge``, ``reference`` and ``captions``). ``run`` keeps the books,
``command`` is the command line. What is asked of a clip is one frozen record, ``limits.Limits``. The paper curates
references and captions and takes the sound as it is; the lip-sync check is ours. Training on drawn faces needs none of
this.
"""
