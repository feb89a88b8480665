"""The 20 object categories of PASCAL VOC (2007 to 2012), in the order of their names, which is that of their labels."""

from ssd300_vgg16.data.dataset import Category

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CATEGORIES: tuple[Category, ...] = tuple(
    Category(label, label, name) for label, name in enumerate(_NAMES.split(), start=1)
)
