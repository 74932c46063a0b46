#include "encoders.h"

#include <algorithm>
#include <stdexcept>

namespace {

// Whole numbers are the same word however they are written: 7, 07, +7 and 7.0.
std::string canonical(const std::string& word) {
    size_t end = 0;
    try {
        const double value = std::stod(word, &end);
        const auto whole = static_cast<int64_t>(value);
        if (end == word.size() && static_cast<double>(whole) == value && std::abs(value) < 9e15) {
            return std::to_string(whole);
        }
    } catch (const std::exception&) {
        // no number, so no word of this vocabulary
    }
    return word;
}

// Where a number lies among rising quantiles, as a level in [0, 1]; of equal ones `upper` or the lower end.
double level(const std::vector<double>& quantiles, double number, bool upper) {
    const auto place = upper ? std::upper_bound(quantiles.begin(), quantiles.end(), number)
                             : std::lower_bound(quantiles.begin(), quantiles.end(), number);
    const auto last = static_cast<double>(quantiles.size() - 1);
    if (place == quantiles.begin()) {
        return 0.0;
    }
    if (place == quantiles.end()) {
        return 1.0;
    }
    const auto right = static_cast<double>(place - quantiles.begin());
    const double width = *place - *(place - 1);
    return (right - 1 + (width > 0 ? (number - *(place - 1)) / width : 1.0)) / last;
}

}  // namespace

std::vector<std::string> split(const std::string& text, const std::string& separator) {
    std::vector<std::string> parts;
    if (text.empty()) {
        return parts;
    }
    size_t begin = 0;
    for (size_t end = text.find(separator); end != std::string::npos; end = text.find(separator, begin)) {
        parts.push_back(text.substr(begin, end - begin));
        begin = end + separator.size();
    }
    parts.push_back(text.substr(begin));
    return parts;
}

Words::Words(const nlohmann::json& encoder)
    : whole_numbers_(encoder.at("words").get<std::string>() == "int64") {
    int64_t id = 0;
    for (const auto& word : encoder.at("word_by_id")) {
        ids_.emplace(word.is_string() ? word.get<std::string>() : std::to_string(word.get<int64_t>()), id++);
    }
    unknown_ = ids_.at("__UNKNOWN__");
    const auto& parameters = encoder.at("parameters");
    separator_ = parameters.value("sep", "");
    newest_ = parameters.value("keep", "newest") == "newest";
    longest_ = encoder.value("longest", size_t{0});
}

int64_t Words::id(const std::string& word) const {
    const auto found = ids_.find(whole_numbers_ ? canonical(word) : word);
    return found == ids_.end() ? unknown_ : found->second;
}

std::pair<size_t, size_t> Words::cut(size_t events) const {
    const size_t kept = std::min(events, longest_);
    return {kept, newest_ ? events - kept : 0};
}

std::vector<int64_t> Words::history(const std::string& text) const {
    const auto words = split(text, separator_);
    const auto [kept, skipped] = cut(words.size());
    std::vector<int64_t> ids(kept);
    std::transform(words.begin() + skipped, words.begin() + skipped + kept, ids.begin(),
                   [this](const std::string& word) { return id(word); });
    return ids;
}

Quantiles::Quantiles(const nlohmann::json& encoder)
    : mean_(encoder.at("mean")), quantiles_(encoder.at("quantiles").get<std::vector<double>>()) {}

float Quantiles::of(const std::string& text) const {
    const double number = text.empty() ? mean_ : std::stod(text);
    if (number >= quantiles_.back()) {
        return 1.0F;
    }
    if (number <= quantiles_.front()) {
        return 0.0F;
    }
    return static_cast<float>(0.5 * (level(quantiles_, number, true) + level(quantiles_, number, false)));
}
