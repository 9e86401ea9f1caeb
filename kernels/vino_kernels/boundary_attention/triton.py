"""Flash attention over a packed sequence and its gradient: a program per head and tile of rows of one group.

A row sees one contiguous range of keys, so a program walks that range and nothing else: tiles nobody sees cost
nothing, rows of other segments and of the padding are never read. For the gradient one kernel owns query rows and one
owns key rows, so that no sum needs atomics and two runs give the same bytes. `forward_kernel` runs on every GPU;
`tma_kernel` computes the same where the hardware copies whole tiles.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(2**31 - 1)


@triton.jit
def locate(
    offsets, groups, n_segments, n_groups, ROWS: tl.constexpr, SEGMENT_SLOTS: tl.constexpr, GROUP_SLOTS: tl.constexpr
):
    """The tile of this program: its first row, its group's range, its segment's range, the start of the segment's
    last group, and whether the rows are padding. A tile whose first row is not below its group's end is empty.

    Group g begins with program groups[g] // ROWS + g: enough programs for its rows, wherever they start, and at most
    one of them idle, without a running sum over the groups before it.
    """
    tile = tl.program_id(0)
    g = tl.arange(0, GROUP_SLOTS)
    starts = tl.load(groups + g, mask=g < n_groups, other=FAR)
    group = tl.sum((starts // ROWS + g <= tile).to(tl.int32), 0) - 1
    start = tl.load(groups + group)
    end = tl.load(groups + group + 1)
    first = start + (tile - start // ROWS - group) * ROWS
    s = tl.arange(0, SEGMENT_SLOTS)
    cuts = tl.load(offsets + s, mask=s <= n_segments, other=FAR)
    low = tl.max(tl.where(cuts <= start, cuts, 0), 0)
    high = tl.min(tl.where(cuts > start, cuts, FAR), 0)
    last = tl.max(tl.where(starts < high, starts, 0), 0)
    padding = start >= tl.load(offsets + n_segments - 1)
    return first, start, end, low, high, last, padding


@triton.jit
def load_rows(base, row, end, stride, ROWS: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, CUT: tl.constexpr):
    """Rows row:row+ROWS of one head, [ROWS, WIDTH]; channels from C on, and with CUT rows from `end` on, are zero."""
    i = tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    # All addresses in int64: a row times its stride passes 2**31 in sequences that fit a GPU.
    at = base + tl.cast(row, tl.int64) * stride + i.to(tl.int64)[:, None] * stride + c[None, :]
    if CUT:
        tile = tl.load(at, mask=(row + i < end)[:, None] & (c < C)[None, :], other=0.0)
    elif C != WIDTH:
        tile = tl.load(at, mask=(c < C)[None, :], other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def store_rows(base, row, end, stride, tile, ROWS: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr):
    """Write a tile [ROWS, WIDTH] to rows row:min(row+ROWS, end) and channels below C of one head."""
    i = tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    at = base + tl.cast(row, tl.int64) * stride + i.to(tl.int64)[:, None] * stride + c[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=(row + i < end)[:, None] & (c < C)[None, :])


@triton.jit
def dot(a, b, WIDEN: tl.constexpr):
    """a @ b in float32. The interpreter multiplies the bits of bfloat16 as integers: WIDEN makes floats of them."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def weigh(state, q_tile, k_tile, left, SCALE: tl.constexpr, ROWS: tl.constexpr, WIDEN: tl.constexpr, CUT: tl.constexpr):
    """Take a tile of keys, with CUT the first `left` of its ROWS, into the running softmax; its values come next.

    state: mixed values, their sum of weights, and the peak of the scores in powers of 2. Returns the state, still
    without the tile's values, and the weights of those.
    """
    mixed, total, peak = state
    scores = dot(q_tile, tl.trans(k_tile), WIDEN)
    if CUT:
        scores = tl.where((tl.arange(0, ROWS) < left)[None, :], scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * SCALE)
    weights = tl.exp2(scores * SCALE - new_peak[:, None])
    keep = tl.exp2(peak - new_peak)
    return (mixed * keep[:, None], total * keep + tl.sum(weights, 1), new_peak), weights


@triton.jit
def mix(state, weights, v_tile, WIDEN: tl.constexpr):
    """Add a tile of values by the weights of its keys."""
    mixed, total, peak = state
    return mixed + dot(weights.to(v_tile.dtype), v_tile, WIDEN), total, peak


@triton.jit
def attend(
    state, q_tile, k_tile, v_tile, left, SCALE: tl.constexpr, ROWS: tl.constexpr, WIDEN: tl.constexpr,
    CUT: tl.constexpr,
):  # fmt: skip
    """`weigh` and `mix` for a tile of keys and its values."""
    state, weights = weigh(state, q_tile, k_tile, left, SCALE, ROWS, WIDEN, CUT)
    return mix(state, weights, v_tile, WIDEN)


@triton.jit
def finish(state, out, lse, first, end, heads, head, ROWS: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr):
    """Write the rows first:min(first+ROWS, end) of `out` and `lse`; where no key was seen they are 0 and -inf."""
    mixed, total, peak = state
    # NaN stays NaN: only a sum without weights is replaced.
    total = tl.where(total == 0, 1.0, total)
    store_rows(out + head * C, first, end, heads * C, mixed / total[:, None], ROWS, C, WIDTH)
    i = tl.arange(0, ROWS)
    at = lse + (first + i).to(tl.int64) * heads + head
    tl.store(at, (peak + tl.log2(total)) * LN_2, mask=first + i < end)


@triton.jit(do_not_specialize=["n_segments", "n_groups"], do_not_specialize_on_alignment=["offsets", "groups"])
def forward_kernel(
    q, k, v, offsets, groups, q_row, q_head, k_row, k_head, v_row, v_head, heads, n_segments, n_groups, out, lse,
    C: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, SEGMENT_SLOTS: tl.constexpr,
    GROUP_SLOTS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """out [L, H, C] and natural log-sum-exp [L, H] for OWN query rows of head program_id(1)."""
    first, start, end, low, high, _last, padding = locate(
        offsets, groups, n_segments, n_groups, OWN, SEGMENT_SLOTS, GROUP_SLOTS
    )
    if first >= end:
        return
    # The last group of a segment sees all of it, any other itself; padding sees nothing, which leaves zeros below.
    low = tl.where(end == high, low, start)
    stop = tl.where(padding, low, end)
    head = tl.program_id(1).to(tl.int64)
    k += head * k_head
    v += head * v_head
    SCALE: tl.constexpr = C**-0.5 * LOG2_E
    q_tile = load_rows(q + head * q_head, first, end, q_row, OWN, C, WIDTH, True)
    state = (
        tl.zeros([OWN, WIDTH], tl.float32), tl.zeros([OWN], tl.float32), tl.full([OWN], float("-inf"), tl.float32)
    )  # fmt: skip
    whole = low + (stop - low) // OTHER * OTHER
    for row in tl.range(low, whole, OTHER):
        k_tile = load_rows(k, row, stop, k_row, OTHER, C, WIDTH, False)
        v_tile = load_rows(v, row, stop, v_row, OTHER, C, WIDTH, False)
        state = attend(state, q_tile, k_tile, v_tile, OTHER, SCALE, OTHER, WIDEN, False)
    if whole < stop:
        k_tile = load_rows(k, whole, stop, k_row, OTHER, C, WIDTH, True)
        v_tile = load_rows(v, whole, stop, v_row, OTHER, C, WIDTH, True)
        state = attend(state, q_tile, k_tile, v_tile, stop - whole, SCALE, OTHER, WIDEN, True)
    finish(state, out, lse, first, end, heads, head, OWN, C, WIDTH)


@triton.jit(do_not_specialize=["n_segments", "n_groups"], do_not_specialize_on_alignment=["offsets", "groups"])
def tma_kernel(
    q, k, v, offsets, groups, q_row, q_head, k_row, k_head, v_row, v_head, heads, n_segments, n_groups, out, lse,
    C: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, SEGMENT_SLOTS: tl.constexpr,
    GROUP_SLOTS: tl.constexpr, WIDEN: tl.constexpr, SPECIALISED: tl.constexpr,
):  # fmt: skip
    """As `forward_kernel`, reading by tensor descriptors; with SPECIALISED some warps copy while others multiply.

    A descriptor ends with the last row that may be read: rows beyond it arrive as zeros. Triton hands a loop to
    groups of warps only where nothing branches around it: with SPECIALISED every tile is masked, without it the last.
    No program returns early. Values are read behind the softmax: the product of queries and keys does not wait for
    them. Float32, which spills either way, masks every tile and reads both first.
    """
    first, start, end, low, high, _last, padding = locate(
        offsets, groups, n_segments, n_groups, OWN, SEGMENT_SLOTS, GROUP_SLOTS
    )
    low = tl.where(end == high, low, start)
    stop = tl.where(padding | (first >= end), low, end)
    head = tl.program_id(1).to(tl.int64)
    # The hardware takes no tensor without rows: one is promised, and a tile without rows of its own reads beyond it.
    q_rows = tl.make_tensor_descriptor(q + head * q_head, [tl.maximum(end, 1), C], [q_row, 1], [OWN, WIDTH])
    k_rows = tl.make_tensor_descriptor(k + head * k_head, [tl.maximum(stop, 1), C], [k_row, 1], [OTHER, WIDTH])
    v_rows = tl.make_tensor_descriptor(v + head * v_head, [tl.maximum(stop, 1), C], [v_row, 1], [OTHER, WIDTH])
    SCALE: tl.constexpr = C**-0.5 * LOG2_E
    q_tile = q_rows.load([tl.where(first < end, first, first + 1), 0])
    state = (
        tl.zeros([OWN, WIDTH], tl.float32), tl.zeros([OWN], tl.float32), tl.full([OWN], float("-inf"), tl.float32)
    )  # fmt: skip
    HALF: tl.constexpr = q.dtype.element_ty.primitive_bitwidth == 16
    masked = low
    if HALF and not SPECIALISED:
        masked = low + (stop - low) // OTHER * OTHER
        for row in tl.range(low, masked, OTHER):
            state, weights = weigh(state, q_tile, k_rows.load([row, 0]), OTHER, SCALE, OTHER, WIDEN, False)
            state = mix(state, weights, v_rows.load([row, 0]), WIDEN)
    for row in tl.range(masked, stop, OTHER, warp_specialize=SPECIALISED):
        if HALF:
            state, weights = weigh(state, q_tile, k_rows.load([row, 0]), stop - row, SCALE, OTHER, WIDEN, True)
            state = mix(state, weights, v_rows.load([row, 0]), WIDEN)
        else:
            k_tile = k_rows.load([row, 0])
            v_tile = v_rows.load([row, 0])
            state = attend(state, q_tile, k_tile, v_tile, stop - row, SCALE, OTHER, WIDEN, True)
    finish(state, out, lse, first, end, heads, head, OWN, C, WIDTH)


@triton.jit
def load_column(base, row, end, heads, head, other, ROWS: tl.constexpr):
    """Values [ROWS] of one head from float32 [L, heads], `other` from row `end` on."""
    i = tl.arange(0, ROWS)
    return tl.load(base + (row + i).to(tl.int64) * heads + head, mask=row + i < end, other=other)


@triton.jit(do_not_specialize=["n_segments", "n_groups"], do_not_specialize_on_alignment=["offsets", "groups"])
def queries_kernel(
    q, k, v, offsets, groups, q_row, q_head, k_row, k_head, v_row, v_head, heads, n_segments, n_groups,
    grad_out, grad_lse, out, lse, grad_q, shift,
    C: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, SEGMENT_SLOTS: tl.constexpr,
    GROUP_SLOTS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Gradient of OWN query rows of one head, and their `shift` [L, H]: sum over C of out * grad_out, less grad_lse."""
    first, start, end, low, high, _last, padding = locate(
        offsets, groups, n_segments, n_groups, OWN, SEGMENT_SLOTS, GROUP_SLOTS
    )
    if first >= end:
        return
    low = tl.where(end == high, low, start)
    stop = tl.where(padding, low, end)
    head = tl.program_id(1).to(tl.int64)
    k += head * k_head
    v += head * v_head
    SCALE: tl.constexpr = C**-0.5
    q_tile = load_rows(q + head * q_head, first, end, q_row, OWN, C, WIDTH, True)
    given = load_rows(grad_out + head * C, first, end, heads * C, OWN, C, WIDTH, True)
    mixed = load_rows(out + head * C, first, end, heads * C, OWN, C, WIDTH, True)
    own_shift = tl.sum(given.to(tl.float32) * mixed.to(tl.float32), 1)
    own_shift -= load_column(grad_lse, first, end, heads, head, 0.0, OWN)
    i = tl.arange(0, OWN)
    tl.store(shift + (first + i).to(tl.int64) * heads + head, own_shift, mask=first + i < end)
    level = load_column(lse, first, end, heads, head, 0.0, OWN) * LOG2_E
    grad = tl.zeros([OWN, WIDTH], tl.float32)
    for row in tl.range(low, stop, OTHER):
        k_tile = load_rows(k, row, stop, k_row, OTHER, C, WIDTH, True)
        v_tile = load_rows(v, row, stop, v_row, OTHER, C, WIDTH, True)
        weights = tl.exp2(dot(q_tile, tl.trans(k_tile), WIDEN) * (SCALE * LOG2_E) - level[:, None])
        weights = tl.where((row + tl.arange(0, OTHER) < stop)[None, :], weights, 0.0)
        grad_scores = weights * (dot(given, tl.trans(v_tile), WIDEN) - own_shift[:, None])
        grad += dot(grad_scores.to(k_tile.dtype), k_tile, WIDEN)
    store_rows(grad_q + head * C, first, end, heads * C, grad * SCALE, OWN, C, WIDTH)


@triton.jit(do_not_specialize=["n_segments", "n_groups"], do_not_specialize_on_alignment=["offsets", "groups"])
def keys_kernel(
    q, k, v, offsets, groups, q_row, q_head, k_row, k_head, v_row, v_head, heads, n_segments, n_groups,
    grad_out, lse, shift, grad_k, grad_v,
    C: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, SEGMENT_SLOTS: tl.constexpr,
    GROUP_SLOTS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Gradients of OWN key and value rows of one head; `shift` comes from `queries_kernel`."""
    first, start, end, _low, high, last, padding = locate(
        offsets, groups, n_segments, n_groups, OWN, SEGMENT_SLOTS, GROUP_SLOTS
    )
    if first >= end:
        return
    # Seen by the rows of its own group, then, unless that is the same, by the last group of the segment.
    near = tl.where(padding, 0, (end - start + OTHER - 1) // OTHER)
    far = tl.where(padding | (end == high), 0, (high - last + OTHER - 1) // OTHER)
    head = tl.program_id(1).to(tl.int64)
    q += head * q_head
    grad_out += head * C
    SCALE: tl.constexpr = C**-0.5
    k_tile = load_rows(k + head * k_head, first, end, k_row, OWN, C, WIDTH, True)
    v_tile = load_rows(v + head * v_head, first, end, v_row, OWN, C, WIDTH, True)
    k_sum = tl.zeros([OWN, WIDTH], tl.float32)
    v_sum = tl.zeros([OWN, WIDTH], tl.float32)
    for step in tl.range(0, near + far):
        row = tl.where(step < near, start + step * OTHER, last + (step - near) * OTHER)
        stop = tl.where(step < near, end, high)
        q_tile = load_rows(q, row, stop, q_row, OTHER, C, WIDTH, True)
        given = load_rows(grad_out, row, stop, heads * C, OTHER, C, WIDTH, True)
        # Rows that are not there have an infinite log-sum-exp: their weights are zero.
        level = load_column(lse, row, stop, heads, head, float("inf"), OTHER) * LOG2_E
        weights = tl.exp2(dot(k_tile, tl.trans(q_tile), WIDEN) * (SCALE * LOG2_E) - level[None, :])
        v_sum += dot(weights.to(given.dtype), given, WIDEN)
        own_shift = load_column(shift, row, stop, heads, head, 0.0, OTHER)
        grad_scores = weights * (dot(v_tile, tl.trans(given), WIDEN) - own_shift[None, :])
        k_sum += dot(grad_scores.to(q_tile.dtype), q_tile, WIDEN)
    store_rows(grad_k + head * C, first, end, heads * C, k_sum * SCALE, OWN, C, WIDTH)
    store_rows(grad_v + head * C, first, end, heads * C, v_sum, OWN, C, WIDTH)
