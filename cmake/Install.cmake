# What `cmake --install` puts where, and the package that find_package(moe8) finds.
