"""What pictures and clips show, and whether it is what was asked for: classical vision, no model and no network.

`see` looks at a picture, `watch` at a clip, `judge` compares with an example, `understands` reads a caption.
"""

from vino_rt.world.judge.see import Seen, SeenThing, see
from vino_rt.world.judge.understand import understands
from vino_rt.world.judge.verdict import Verdict, judge, psnr
from vino_rt.world.judge.watch import Track, watch

__all__ = ["Seen", "SeenThing", "Track", "Verdict", "judge", "psnr", "see", "understands", "watch"]
