"""Images from files, folders, tables and the standard sets, and plain texts."""

from fisherlayers.data.cifar10 import CIFAR10_CLASSES as CIFAR10_CLASSES
from fisherlayers.data.cifar10 import load_cifar10 as load_cifar10
from fisherlayers.data.corpora import Corpus as Corpus
from fisherlayers.data.corpora import load_penn_treebank as load_penn_treebank
from fisherlayers.data.corpora import load_tiny_shakespeare as load_tiny_shakespeare
from fisherlayers.data.corpora import read_characters as read_characters
from fisherlayers.data.corpora import read_words as read_words
from fisherlayers.data.digits import load_digits as load_digits
from fisherlayers.data.fashion_mnist import FASHION_MNIST as FASHION_MNIST
from fisherlayers.data.fashion_mnist import load_fashion_mnist as load_fashion_mnist
from fisherlayers.data.folders import load_folder as load_folder
from fisherlayers.data.image_sets import DataNotFoundError as DataNotFoundError
from fisherlayers.data.image_sets import ImageSet as ImageSet
from fisherlayers.data.image_sets import TrainTest as TrainTest
from fisherlayers.data.images import ImageReadError as ImageReadError
from fisherlayers.data.images import read_image as read_image
from fisherlayers.data.mnist import MNIST as MNIST
from fisherlayers.data.mnist import load_mnist as load_mnist
from fisherlayers.data.tables import load_table as load_table
from fisherlayers.data.textures import load_texture_patches as load_texture_patches
