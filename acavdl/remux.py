"""Clips as copies of samples: what was chosen of a video goes into a small mp4 or m4a as it is."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from acavdl.media import Media
from acavdl.models import Cut
from acavdl.mp4 import BrokenError, Track, boxes
from acavdl.mux import Part, write_mp4
from acavdl.pick import Chosen, track_of

#: Codecs that are copied from an mp4 without a library: the site's.
VIDEO_CODECS = ("h264", "av1")
AUDIO_CODECS = ("aac",)


def is_copied(media: Media, *, video: bool) -> bool:
    """Whether the track of pictures, or of sound, is of a codec that is copied here."""
    tracks = [track for track in media.movie.tracks if track.is_video is video]
    return not tracks or tracks[0].codec in (VIDEO_CODECS if video else AUDIO_CODECS)


def copy_clip(chosen: Chosen, picture: Media, sound: Media, *, sound_apart: bool) -> Cut:
    """Return a clip with picture and sound, and its sound as an m4a besides, if that is wanted.

    Raises
    ------
    BrokenError
        If frames are not what their codec says.
    """
    frames = frames_part(chosen, picture)
    heard = sound_part(chosen, sound, frames)
    return with_sound(frames, heard, chosen, sound_apart=sound_apart)


def frames_part(chosen: Chosen, picture: Media) -> Part:
    """Return the chosen frames as a track of a file."""
    track, pick = track_of(picture, video=True), chosen.frames
    if pick is None:
        raise ValueError("a clip of sound alone has no frames")
    part = Part(track, pick.samples, picture.read, pick.begin, pick.stop)
    _check_frames(part)
    return part


def sound_part(chosen: Chosen, sound: Media, frames: Part) -> Part:
    """Return the chosen sound as a track of a file: from the first frame on."""
    track, pick = track_of(sound, video=False), chosen.sound
    begin = round(frames.track.seconds(frames.begin) * track.timescale)
    return Part(track, pick.samples, sound.read, begin, pick.stop)


def with_sound(frames: Part, heard: Part, chosen: Chosen, *, sound_apart: bool) -> Cut:
    """Return the clip of two tracks."""
    pick = chosen.frames
    count = 0 if pick is None else pick.count
    silence = max(0, int(heard.samples.pts[0]) - heard.begin)
    apart = {"m4a": write_mp4([heard])} if sound_apart else {}
    begin, stop = (frames.track.seconds(ticks) for ticks in (frames.begin, frames.stop))
    return replace(
        _of_sound(heard, begin, stop),
        members={"mp4": write_mp4([frames, heard]), **apart},
        frames=count,
        fps=float(count / (stop - begin)),
        width=frames.track.width,
        height=frames.track.height,
        video_codec=frames.track.codec,
        av_offset=float(heard.track.seconds(silence)),
    )


def copy_sound(chosen: Chosen, sound: Media) -> Cut:
    """Return an m4a of the chosen packets: from the start asked for, or where they begin."""
    track, pick = track_of(sound, video=False), chosen.sound
    # Where the sound begins later, so does the file: many readers look past an empty edit.
    begin = max(pick.begin, int(pick.samples.pts[0]))
    stop = int(pick.samples.pts[-1] + pick.samples.duration[-1])
    part = Part(track, pick.samples, sound.read, begin, stop)
    cut = _of_sound(part, track.seconds(begin), track.seconds(stop))
    return replace(cut, members={"m4a": write_mp4([part])})


def packets_file(chosen: Chosen, sound: Media) -> tuple[bytes, Fraction]:
    """Return an m4a of all chosen packets, and the time of its first one in the video (seconds)."""
    track, pick = track_of(sound, video=False), chosen.sound
    begin = int(pick.samples.pts[0])
    stop = int(pick.samples.pts[-1] + pick.samples.duration[-1])
    return write_mp4([Part(track, pick.samples, sound.read, begin, stop)]), track.seconds(begin)


def _of_sound(part: Part, begin: Fraction, stop: Fraction) -> Cut:
    track = part.track
    return Cut(
        members={},
        actual_start=float(begin),
        actual_end=float(stop),
        audio_codec=track.codec,
        source_audio_codec=track.codec,
        sample_rate=track.sample_rate,
        channels=track.channels,
    )


# --- frames that are none ------------------------------------------------------------------------

#: Bytes of a VisualSampleEntry before the boxes in it (12.1.3), with its header.
_VISUAL_ENTRY = 86


def _check_frames(part: Part) -> None:
    """Raise if samples of H.264 are not made of units that fill them: noise, or another file."""
    width = _length_size(part.track)
    if width is None:
        return
    samples = part.samples
    ends = samples.offset + samples.size
    breaks = np.flatnonzero(samples.offset[1:] != ends[:-1]) + 1
    for first, stop in zip([0, *breaks], [*breaks, len(samples)], strict=True):
        data = part.read(int(samples.offset[first]), int(ends[stop - 1]))
        at = 0
        for size in samples.size[first:stop].tolist():
            end = at + size
            while at < end:
                begin = at + width
                # The first bit of a unit is 0 (ISO/IEC 14496-10, 7.3.1).
                if begin < end and data[begin] & 0x80:
                    break
                at = begin + int.from_bytes(data[at:begin], "big")
            if at != end:
                raise BrokenError("frames that are none")


def _length_size(track: Track) -> int | None:
    """Return how many bytes tell the length of a unit (ISO/IEC 14496-15, 5.3.3.1)."""
    for box in boxes(track.entry, _VISUAL_ENTRY):
        if box.kind == b"avcC" and box.stop - box.start > 4:
            return (track.entry[box.start + 4] & 3) + 1
    return None
