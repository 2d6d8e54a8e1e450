"""Faults: each puts one plausible mistake into a kernel, and the conformance cases must see it."""

from typing import NamedTuple


class Fault(NamedTuple):
    """In the file that defines the kernel's fast form, or in `triton_parts.py` if it is only there, `old`
    becomes `new`."""

    kernel: str
    old: str
    new: str


FAULTS = [
    Fault("paged.decode", "fade = tl.exp2(top - base)", "fade = tl.exp2(base - base)"),
    Fault("paged.decode", "total * fade + tl.sum(w, 1)", "total + tl.sum(w, 1)"),
    Fault("paged.decode", "acc / safe[:, None]", "acc"),
    Fault("paged.decode", "there = slot >= 0", "there = slot > 0"),
    Fault("paged.decode", "mask=at < width, other=-1", "mask=at < width + 1, other=-1"),
    Fault("paged.decode", "+ g * k_h", "+ 0 * k_h"),
    Fault("paged.decode", "(top + tl.log2(safe)) * ln2)", "top + tl.log2(safe))"),
    Fault("paged.decode", "head = g * G + row", "head = g + row * G"),
    Fault("paged.decode", "s += add[None, :] * log2e", "s += add[None, :]"),
    Fault("actqkv.probe_query", "partial.sum(1) / d", "partial[:, 0] / d"),
    Fault(
        "actqkv.probe_query", "mask & (var > 0)[None, :]", "mask & (var >= 0)[None, :] & (var < 1)[None, :]"
    ),
    Fault("actqkv.probe_query", "tl.where(mask, value - middle[None, :], 0.0)", "value - middle[None, :]"),
    Fault(
        "actqkv.page_scores", "start + tl.arange(0, CHANNELS)\n        q", "tl.arange(0, CHANNELS)\n        q"
    ),
    Fault("actqkv.page_scores", 'tl.where(page >= 0, total, float("-inf"))', "total"),
    Fault("actqkv.retrieve", "at <= position[:, None]", "at < position[:, None]"),
    Fault("actqkv.retrieve", "places = places[best.sort().values]", "places = best.sort().values"),
    Fault("actqkv.retrieve", "max(first - n_local, 0)", "max(first, 0)"),
    Fault("ems.column_sums", "i[:, None] + before >= j[None, :]", "i[:, None] + before > j[None, :]"),
    Fault("ems.column_sums", "everyone / G", "everyone"),
    Fault("ems.column_sums", "i >= n_q - window", "i >= n - window"),
    Fault("ems.assign", "(cos_k > 0) & (cos_v > 0) & (y < m)", "(y < m)"),
    Fault("ems.assign", "here > best", "here >= best"),
    Fault("ems.merge", "start == end", "start >= end - 1"),
    Fault("ems.merge", "total * (length / ", "total * (1.0 / "),
    Fault("ems.merge_unrotated", "second * cos + first * sin", "second * cos - first * sin"),
    Fault("ems.merge_unrotated", "rotary, back=True", "rotary"),
    Fault("ems.merge_unrotated", "position.gather(1, centres)", "position[:, :m]"),
    Fault("ems.merge_unrotated", "cos / length, (", "cos, ("),
    Fault("ems.merge_unrotated", "place[:, :m], place[:, m:]", "centres, tokens"),
    Fault("ems.merge_unrotated", "torch.where(alone, taken(k, centres), keys)", "taken(k, centres)"),
    Fault(
        "deltallm.encode",
        "r = tl.where(new, now, r)\n        tl.store(approximate",
        "r = now\n        tl.store(approximate",
    ),
    Fault("deltallm.encode", "tl.maximum(n_sink, 1)", "n_sink"),
    Fault("deltallm.run_ids", "r = tl.where(left > 0, now, r)", "r = now"),
    Fault("deltallm.attend_packed", "+ tl.cumsum(bit, 0) - 1", "+ tl.cumsum(bit, 0)"),
    Fault("deltallm.attend_packed", "(tl.cumsum(of_channel, 0) - of_channel)", "tl.cumsum(of_channel, 0)"),
    Fault("deltallm.attend_packed", "tl.where(tile >= 0, slot, -1) >= 0", "slot >= -1"),
    Fault("deltallm.attend_packed", "begin = tl.load(first + own", "begin = tl.load(first + tile"),
    Fault("deltallm.attend_packed", "fade = tl.exp2(top - base)", "fade = tl.exp2(base - base)"),
    Fault("deltallm.hybrid_attention", "fade = tl.exp2(top - base)", "fade = tl.exp2(base - base)"),
    Fault("deltallm.hybrid_attention", "- j[None, :] < local", "- j[None, :] <= local"),
    Fault("deltallm.hybrid_attention", "& (start >= n_sink)", "& (start >= 0)"),
    Fault("deltallm.hybrid_attention", "(first + BLOCK - 1 - start < local)", "(first - start < local)"),
    Fault("flash_lla.forward_and_backward", "p * (1 - a)).to(", "p).to("),
    Fault(
        "flash_lla.forward_and_backward",
        "c * (against - slope[:, None] * k_mean) + solved",
        "c * against + solved",
    ),
    Fault("flash_lla.forward_and_backward", "p * (beside - away)", "p * (beside + away)"),
    Fault("flash_lla.forward_and_backward", "right = k_mean + k_centre[None, :]", "right = k_mean"),
    Fault("flash_lla.forward_and_backward", "first + N - 1 + window", "first + window"),
    Fault("flash_lla.decode", "new = tl.maximum(highest, tl.max(s, 0))", "new = tl.max(s, 0)"),
    Fault("flash_lla.decode", "key - shift[None, :]", "key"),
    Fault("hogwild.attend", "fade = tl.exp2(top - base)", "fade = tl.exp2(base - base)"),
    Fault("hogwild.attend", "q_b.to(tl.float32) * c + q_a", "q_b.to(tl.float32) * c - q_a"),
    Fault("hogwild.attend", "j[None, :] <= place[:, None]", "j[None, :] < place[:, None]"),
    Fault("hogwild.attend", "tl.max(place, 0) + 1", "tl.max(place, 0)"),
    Fault("hogwild.attend", "view = (f * n_workers + w) * S + new", "view = (f * n_workers + w) * S"),
    Fault("localleap.predict", "here > best", "here >= best"),
    Fault("localleap.predict", "total * tl.exp2((best - base) * log2e)", "total"),
    Fault("localleap.predict", 'other=float("-inf")', "other=0.0"),
    Fault("engram.hash_rows", "mix = mix ^ (", "mix = mix + ("),
    Fault("engram.lookup", "tl.program_id(0).to(tl.int64) * ROWS", "tl.program_id(0).to(tl.int64) * 4"),
    Fault("engram.gate", "(branches + 1) + branches) * d", "(branches + 1) + m) * d"),
    Fault("engram.gate", "tl.where(g < 0, -root, 0.0)", "-root"),
    Fault("engram.short_conv", "mask=mask & (at < 0)", "mask=mask & (at < 1)"),
    Fault("engram.short_conv", "(TAPS - 1 - tap) * dilation", "(TAPS - 1 - tap)"),
]
