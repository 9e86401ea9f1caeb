"""Training data from disk: folders and WebDataset-style tars of media with captions, as batches of `Sample`.

A data set is any number of folders and uncompressed .tar files; tars inside a folder are part of it. Files that share a
key are one record. A file's key is its name without the suffix and without a role:

    name                        part of the record `dir/000123`
    dir/000123.json             the record: a JSON object, fields below
    dir/000123.txt              instead of it: the whole text is the caption
    dir/000123.png or .mp4      the target (also `dir/000123.target.png`)
    dir/000123.ref0.png         image references, ref0 to ref8
    dir/000123.source.png       the picture to edit or the first frame; the last image reference
    dir/000123.source.mp4       the video to edit or follow

Pictures: png jpg jpeg webp bmp tif tiff ppm avif gif, of one frame. Clips: mp4 m4v mov mkv webm avi gif.
Hidden files are left alone. A folder that holds `dataset.jsonl` is read by that file instead, one record a line.

    field        type                               meaning
    caption      text, list of texts (paraphrases)  needed; serves as long and as short caption
                 or {"long": ..., "short": ...}     the same for each kind; one kind is enough
    task         one of vino_rt.request.TASKS       else inferred from the parts
    target       file name                          else the file of the record's own name; needed in a listing
    images       list of file names                 else ref0, ref1, ..., source
    video        file name                          else `source` where that is a clip
    base_image   true or false                      the last image is edited, the others are references; else true
                                                    where a picture in the role `source` has references beside it
    key          text                               names the record in messages; must be unique

Other fields are ignored. Names are relative to the record's folder; `..` and absolute ones are refused. Targets smaller
than every bucket, and references whose shape is not that of the target they decide, are left out. Everything left out
is counted by reason; a file that breaks only while it is decoded is replaced by the next record of its pool.
"""

from vino_rt.train.data.buckets import Bucket, Sizing, make_buckets
from vino_rt.train.data.disk import DiskConfig, DiskData
from vino_rt.train.data.index import Index, Report, open_dataset
from vino_rt.train.data.order import BatchOrder

__all__ = [
    "BatchOrder",
    "Bucket",
    "DiskConfig",
    "DiskData",
    "Index",
    "Report",
    "Sizing",
    "make_buckets",
    "open_dataset",
]
