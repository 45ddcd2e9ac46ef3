"""Every code that errors and findings carry: what it means and what mends it. The table in the docs is made from this.

    H1xx   the data is usable, but something about it deserves a look (`halfmask check`)
    H2xx   the data cannot be used as it is: training stops, `halfmask check` exits with 1
    H3xx   a recipe, an option or a size is wrong
    H4xx   a run, a checkpoint, a bundle or the place for a result cannot be used
    H5xx   the machine lacks memory, room or a device
    H6xx   a result is not good enough to be kept

A code never changes its meaning; one that is no longer given stays free.
"""

import re
from typing import NamedTuple


class Code(NamedTuple):
    """One code.

    Args:
        meaning: what was found.
        cure: what to do about it, when nothing more specific is known.
    """

    meaning: str
    cure: str


# Code, meaning | cure; a row may go on in the next line.
_TABLE = """\
H101 images carry an EXIF rotation | nothing: they are turned upright, as annotation tools show them
H102 images of fewer than 32 pixels on a side | remove them if they are thumbnails or leftovers
H103 gray, color and transparent images are mixed | nothing, if intended: all are read as RGB, alpha drops
H104 images of more than 30 million pixels | cut them into tiles, or set data.cache=memmap
H105 animated images | save the frames as single images: only the first one is read
H106 pixels that are not numbers (NaN, infinity) | fill them, or name their value as `nodata`
H110 masks without an image | name each mask like its image, or remove it
H111 masks saved as RGB with three equal channels | nothing: the first channel is read as class ids
H112 masks use 255, which is ignored | nothing, if 255 means unknown; else name it in `classes` or `map`
H113 masks in which every pixel is ignored | draw them, or remove them: such an image teaches nothing
H114 masks fit the stored, not the upright image | check one: it is turned with the image
H115 the images of an orientation that keeps their size | check one mask: it is taken as drawn upright
H116 validation or test images without a mask | add their masks: without them they are not used
H117 images in folders that the layout does not know | move them to images/ or unlabeled/ to train on them
H118 files among the images that hold a handful of values, as masks do | look at one: move masks into masks/, named like
     their images; nothing, if they are images
H120 classes with few labeled pixels | label more images that show them
H121 classes in no labeled mask | label an image that shows them, or remove the class
H122 classes in no validation mask | validate on images that show them: their IoU cannot be measured
H123 classes without names | name them in halfmask.yaml: `halfmask check --fix` writes one to edit
H124 masks of several types (palette, gray, color, ...) | look at one mask of each type, or save all alike
H125 masks with coordinates and masks without | look at one of the fewer: pixels without coordinates are in place
H126 names that differ in their Unicode form only (macOS writes letters and accents apart) | nothing: they are paired;
     rename them if other tools take them apart
H127 masks (GeoTIFF) that declare a value as no data which is read as a class | nothing, if it is the class; `map: {0:
     255}` or `ignore_index: 0` in halfmask.yaml, if nobody looked there
H130 near-duplicate images in different parts | keep each scene in one part: results would be too good
H131 the same image more than once in a part | remove copies; keep the frames of a video together in one part
H132 unlabeled images that show what a labeled one shows | nothing: they only add little
H140 no validation images | name a part or a list with data.val; or train with --folds, which scores all masks
H141 few validation images | validate on more images: small differences of IoU are chance
H142 fewer than five labeled images | label more; `halfmask suggest` names the most useful ones
H143 no unlabeled images | add images without masks, or use fewer masks (data.labeled)
H150 names that differ in upper and lower case only | rename: some systems keep only one of them
H151 symbolic links that are not followed | copy the files, or link the single files
H152 files of kinds that are not read | convert them to PNG, JPEG or TIFF
H153 a split list names images that are not there | draw the split anew: halfmask split --data DIR
H160 shapes without area in annotation files: lines, points, outlines smaller than a pixel | outline them as polygons,
     or give lines a width: `line_width: 3` in halfmask.yaml
H161 shapes outside of their image | look whether the annotation file belongs to this image
H162 class names that differ in upper case, spaces or hyphens only | give them one name, if they are one class
H163 COCO crowds (iscrowd 1) are read as unknown | `crowds: [NAME]` in halfmask.yaml, if they are the class
H164 json files beside COCO instances that are not used | nothing; or move them out of the folder
H165 COCO annotations of images that the file does not list | export again, with these images
H166 annotated images that are not in the folder | copy them there, or name the files as the annotations do
H167 annotation files of a form that is not read | export them as COCO, Label Studio or labelme json, or as masks (PNG)
H200 data that cannot be used, for a reason without a code of its own | the message says
H201 a file is missing, empty, broken or not to be opened | copy it again, or remove it
H202 a mask has another size than its image | export masks at image size, or data.dataset.resize_masks=true
H203 a mask holds values that are no class | name the class in `classes`, or ignore it: `map: {3: 255}`
H204 masks hold 0 and 255 only: foreground or unknown? | `binary: true`, or `map: {255: 255}`
H205 class ids start at 1 | name them as stored, `classes: {1: NAME, ...}`, or `map: {1: 0, 2: 1}`
H206 a mask holds colors that name no class | `palette: {0: [R, G, B], ...}` in halfmask.yaml
H207 bit depth or number of bands | `range: [0, 4095]` or `bands: 5` in halfmask.yaml
H208 no folder, no known layout, a form that is not read, or names that pair in two ways | what the message says; the
     plainest form is images/ and masks/, one name per pair
H209 halfmask.yaml or a class file is wrong | correct the keys the message names
H210 too few images or masks | add masks, or ask for fewer
H211 split lists do not fit the data or each other | correct the lists, or draw them: halfmask split
H212 a single class | name or draw a second one: with one class there is nothing to tell apart
H213 a file or a feature needs an optional package | install what the message names
H214 the palettes of masks differ: an index has another color elsewhere | save all masks with class ids as gray values;
     or name the colors in `palette`
H215 a mask of several layers: pages, bands, frames, or transparency | save one layer of class ids: layers.argmax(0)
H216 a mask with coordinates that are not its image's | warp it to the grid of the image: rio warp --like IMAGE
H217 masks that number single objects, anew in each image | `classes: {0: background, 1: object}` and `map: {2: 1,
     ...}`: halfmask check --fix writes them
H220 a mask that halfmask wrote has other class ids than the masks beside it | predict or convert it again, with a model
     or masks of the ids that halfmask.yaml names
H221 a mask that halfmask wrote lies among the images | move results out of the data, or into a folder of masks
H301 settings or options that are missing or do not fit together | change the ones the message names
H302 a size or shape that does not fit | use one that the message names
H303 an unknown key or name, or a value that is not allowed | the message names what is; `halfmask list`
H304 a recipe file that is missing, or is no recipe | correct it, or use one of `halfmask list recipes`
H305 a budget of time or memory that is too small | give the least that works: the message names it
H401 a checkpoint, bundle or run that cannot serve for this | use another one, or another command
H402 a file of a run or bundle is damaged or incomplete | copy it again, or use another checkpoint
H403 a file of another program, or of a network unknown here | halfmask import FILE; `halfmask list importers` names
     what is read
H404 a file of another version's format | use the version of halfmask that wrote it
H405 other classes, lists or networks than a checkpoint's | use those it was trained with, or train anew
H406 a file was changed after it was saved | copy the bundle again, from a place that is trusted
H407 no run, checkpoint or bundle at this place | name the folder given to halfmask train --out, or the file
H408 the place for a result holds other files | another --out; --overwrite replaces results of halfmask that nobody has
     changed since
H409 pretrained weights that are unknown or not to be had | a file, or model.encoder.weights=null
H410 a model that cannot be exported | predict with the bundle: halfmask predict RUN
H501 too little memory | a smaller batch (data.batch), then a smaller data.crop
H502 a result cannot be written | free some space, make the folder writable, or choose another --out
H503 a device that this machine does not have | run.accelerator=auto, or --device auto
H601 an exported model gives other classes than the original | export in the other format
H602 a loss that is not finite: the run ended at that step | a lower optim.lr, optim.clip_norm=1, a warm-up
H603 a network predicts one class on all validation images, though their masks show several | more steps, pretrained
     weights, data.balance=classes
H604 the averages in batch norm do not fit plain images: with averages of these, many pixels get another class | more
     steps; run.passes=apart with DeepLabV3+; run.precise_bn=64
H605 a score on images that the model was trained on, or on copies of them | score images that it has not seen: --part
     test, or another list
H606 the memory of a method stays empty: no class ever enters it | a lower threshold of the method, more masks,
     pretrained weights
H607 all pseudo-masks that a stage wrote are of ignored pixels only | a lower threshold, or a longer stage before; then
     --overwrite
"""


def _read(table: str) -> dict[str, Code]:
    rows = re.split(r"\n(?=H\d)", table)
    split = (" ".join(row.split()).partition(" ") for row in rows)
    return {code: Code(*said.split(" | ")) for code, _, said in split}


CODES: dict[str, Code] = _read(_TABLE)


def describe(code: str) -> Code:
    """Return the meaning and the cure of a code.

    >>> describe("H202").meaning
    'a mask has another size than its image'
    """
    return CODES[code]
