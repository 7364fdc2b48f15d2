import pytest
import torch
import torch.nn.functional as F

from csd_lib.model import Block, ResNet, freeze


def test_protocol_network_has_the_published_number_of_parameters():
    model = ResNet(depth=32, num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == 469_904


@pytest.mark.parametrize("depth, convolutions", [(8, 7), (14, 13), (32, 31)])
def test_depth_counts_convolutions_and_head(depth, convolutions):
    model = ResNet(depth=depth, num_classes=3)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == convolutions


@pytest.mark.parametrize("channels, size", [(3, 32), (1, 8)])
def test_features_are_64_non_negative_numbers_and_logits_one_per_class(channels, size, generator):
    model = ResNet(depth=8, num_classes=7, in_channels=channels).eval()
    images = torch.randint(0, 256, (5, channels, size, size), generator=generator).byte()
    features, logits = model(images)
    assert features.shape == (5, 64) and logits.shape == (5, 7)
    assert features.min() >= 0, "the last layer is a ReLU"
    torch.testing.assert_close(logits, features @ model.head.weight.T)


def test_uint8_images_are_normalised_and_float_images_are_taken_as_they_are(generator):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    model = ResNet(depth=8, num_classes=2, mean=mean, std=std).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=generator).byte()
    by_hand = (images.double() / 255 - torch.tensor(mean)[:, None, None].double()) / torch.tensor(
        std
    )[:, None, None].double()
    torch.testing.assert_close(model(images)[0], model(by_hand.float())[0], rtol=1e-4, atol=1e-5)


def test_shortcut_takes_every_second_pixel_and_fills_new_channels_with_zeros(generator):
    block = Block(16, 32, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # the residual branch is silent: only the shortcut
    x = torch.rand(2, 16, 8, 8, generator=generator)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.relu(expected))


def test_growing_the_head_keeps_old_rows_and_adds_rows_of_length_one(generator):
    model = ResNet(depth=8, num_classes=4)
    old = model.head.weight.detach().clone()
    model.grow_head(3, generator)
    assert model.num_classes == 7
    assert torch.equal(model.head.weight[:4], old)
    torch.testing.assert_close(model.head.weight.norm(dim=1), torch.ones(7))


def test_head_is_normalised_in_place_so_that_the_optimiser_keeps_its_parameter():
    model = ResNet(depth=8, num_classes=4)
    address = model.head.weight.data_ptr()
    with torch.no_grad():
        model.head.weight.mul_(3)
    model.head.normalize_()
    assert model.head.weight.data_ptr() == address
    torch.testing.assert_close(model.head.weight.norm(dim=1), torch.ones(4))


def test_same_seed_same_weights_and_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = ResNet(8, 3, seed=1), ResNet(8, 3, seed=1), ResNet(8, 3, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_frozen_teacher_shares_nothing_with_the_student(generator):
    student = ResNet(depth=8, num_classes=2, in_channels=1)
    teacher = freeze(student)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    student.train()(torch.rand(8, 1, 8, 8, generator=generator))  # moves BatchNorm statistics
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
