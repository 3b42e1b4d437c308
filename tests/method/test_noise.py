"""Position-keyed noise: published vectors, crops, and statistics."""

import pytest
import torch
from scipy import stats

from fresco_dist.method.level import PRIOR_STREAM
from fresco_dist.method.noise import gaussian_noise, key_of, philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123, philox4x32 with 10 rounds
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_reproduces_the_published_vectors(counter, key, expected):
    words = philox([torch.tensor([word]) for word in counter], key)
    assert [int(word) for word in words] == expected


def test_noise_of_a_crop_is_the_crop_of_the_noise():
    canvas = gaussian_noise((6, 3, 37, 53), seed=11)
    crop = gaussian_noise((6, 3, 9, 13), seed=11, origin=(20, 31))
    assert torch.equal(crop, canvas[..., 20:29, 31:44])
    assert torch.equal(gaussian_noise((5, 2, 40, 60), seed=11)[..., :37, :53], canvas[:5, :2])


def test_noise_depends_on_seed_and_stream():
    noises = [
        gaussian_noise((4, 2, 8, 8), seed=0),
        gaussian_noise((4, 2, 8, 8), seed=1),
        gaussian_noise((4, 2, 8, 8), seed=0, stream=PRIOR_STREAM),
    ]
    for i in range(3):
        for j in range(i):
            correlation = torch.corrcoef(torch.stack([noises[i].flatten(), noises[j].flatten()]))[0, 1]
            assert abs(float(correlation)) < 0.2


def test_noise_of_seeds_of_64_bits_depends_on_every_bit():
    """And is that of no other stream either."""
    seeds = [7, 7 + 2**32, 7 + 2**33, 7 + 2**63, 2**64 - 1, 2**32 - 1, 2**32]
    noises = [gaussian_noise((4, 2, 8, 8), seed=seed, stream=stream) for seed in seeds for stream in (0, PRIOR_STREAM)]
    correlations = torch.corrcoef(torch.stack([noise.flatten() for noise in noises]))
    assert (correlations - torch.eye(len(noises))).abs().max() < 0.25


def test_noise_key_is_seed_and_stream_up_to_32_bits_and_made_of_them_above():
    assert key_of(2**32 - 1, 3) == (2**32 - 1, 3)
    words = philox([torch.tensor([word]) for word in (5, 0, 0, 0)], (7, 3))
    assert key_of(5 * 2**32 + 7, 3) == (int(words[0]), int(words[1]))


def test_noise_of_a_seed_of_64_bits_is_standard_normal():
    noise = gaussian_noise((8, 4, 40, 40), seed=2**64 - 1)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_noise_is_standard_normal_and_uncorrelated():
    noise = gaussian_noise((8, 4, 40, 40), seed=3)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    for shift in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2, 0, 0, 0)):
        rolled = torch.roll(noise, shift, dims=(0, 1, 2, 3))
        assert abs(float((noise * rolled).mean())) < 0.02
